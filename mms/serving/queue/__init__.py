"""The queue of a servable. Pure except for `job`: events and times in, batches out."""
