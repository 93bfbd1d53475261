"""Tables of clips: check and repair them, explain one row, and draw what is in them."""
