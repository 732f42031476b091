"""Identities: public keys on secp256k1 whose holders sign what they send."""
