"""The judge of the generated world: what a clip shows, how well a model obeys, and how good it can get."""
