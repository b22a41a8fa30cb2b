"""Between pixels and tokens: the VQ-GAN, its codebook, and the perceptual trunk it is trained with."""
