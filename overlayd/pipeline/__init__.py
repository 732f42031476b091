"""What happens to a packet before the append: decoding, schema, filters; and the one publish function."""
