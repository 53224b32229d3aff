"""IDM: iterative diffusion restoration (arXiv 2307.08996), built from its SR3 and DDPM siblings."""
