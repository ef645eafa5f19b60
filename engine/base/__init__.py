"""What the rest of the engine builds on: recipe, DeepSpeed, ranks, stopping, and checks of the base model."""
