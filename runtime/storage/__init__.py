"""Where files live: atomic writes, local folders and object stores, the private cache, strict JSON."""
