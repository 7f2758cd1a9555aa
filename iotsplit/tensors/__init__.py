"""Code that touches tensors: the only core package that may import torch, transformers and peft."""
