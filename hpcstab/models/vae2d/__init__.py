"""vae2d: a KL autoencoder on single-channel chest films."""
