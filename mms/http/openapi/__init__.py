"""OpenAPI documents of the models, and Python clients generated from them."""
