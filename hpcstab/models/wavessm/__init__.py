"""WaveSSM-X: blind image inpainting with wavelet-guided state-space blocks and Fourier convolutions."""
