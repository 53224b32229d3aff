"""The data plane: shards in, shards out. Stages do the work, pools run them, rows account for it.

Outside the networks an image is uint8, RGB, (H, W, 3); only `pipeline.images` converts.
"""
