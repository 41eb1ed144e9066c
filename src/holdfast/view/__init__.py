"""`holdfast view`: runs as pages that a server on this machine draws.

`index` finds the runs of a folder, `site` draws a page and makes its links, one module a page
(`runs`, `run`, `samples`, ...) gathers what it shows, and `server` answers a browser.
"""
