"""xray2ctpa: a chest CT from one X-ray, by diffusion in the latent space of a 3D VQ autoencoder."""
