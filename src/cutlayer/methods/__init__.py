"""One published system per file; `TABLE` lists them."""
