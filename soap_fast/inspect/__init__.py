"""What tells of an optimizer and changes nothing."""
