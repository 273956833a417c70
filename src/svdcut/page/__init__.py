"""The spectra of a checkpoint as one HTML file to send to a colleague.

It measures nothing, draws no pictures and needs no network, neither to write nor to read.
"""

from svdcut.page.page import save_page

__all__ = ["save_page"]
