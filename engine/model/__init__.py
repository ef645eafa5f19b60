"""The model on its device: base weights, LoRA, the forward pass over packs, losses and FLOPs."""
