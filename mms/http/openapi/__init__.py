"""OpenAPI documents of the models, and Python clients written from them."""
