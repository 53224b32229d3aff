"""IQP: restoration with an image quality prior (IQPFR, arXiv 2503.09294; IQPIR, 2603.29773)."""
