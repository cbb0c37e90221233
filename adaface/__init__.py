"""AdaFace: Quality Adaptive Margin for Face Recognition (Kim, Jain, Liu, CVPR 2022)."""
