"""The aiohttp application: routes, middleware, the table of errors. The core knows none of it."""
