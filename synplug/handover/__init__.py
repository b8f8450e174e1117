"""The policy floor: decides what happens next."""
