"""Formats of the BSV chain: transactions, scripts, headers, proofs, keys, signatures.

Pure and synchronous, on coincurve. Whatever the bytes are, a parser gives a value or raises one MalformedChainData;
what is well formed but doesn't hold raises a VerificationFailed. No trailing bytes, only minimal lengths, and no
count is believed before the bytes behind it are seen, so that parsing costs what its input weighs.

`tx` and `extended` (raw and Extended Format), `script` (P2PKH, OP_RETURN, PushDrop), `sighash`, `spending` (signing
and checking inputs), `header` and `difficulty`, `bump`, `beef`, `brought` (a transaction in whatever form a wallet
gives it), `anchor`, `keys`, `base58`, `brc42`, `brc77`, `certificate`, `network`.
"""
