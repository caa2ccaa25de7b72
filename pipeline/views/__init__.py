"""Views of the next item: what counting, a dense retriever and a generator say, and the fusion of all three."""
