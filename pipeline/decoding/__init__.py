"""This package leads from a network to ranked items: beam search, exact scores, the ranks of held-out items."""
