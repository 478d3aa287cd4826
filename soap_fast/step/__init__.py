"""What a step is made of, in its order: no backend stands here."""
