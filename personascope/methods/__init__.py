"""Pure maths: arrays and rows in, arrays and rows out."""
