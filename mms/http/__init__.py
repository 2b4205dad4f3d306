"""The aiohttp application: routes, middleware, the error table. The core does not depend on it."""
