"""What is measured of a picture: classic measures, the quality score, known damage."""
