"""LiquidReg: diffeomorphic registration of 3D scans by a liquid cell whose weights a hyper-network writes."""
