"""From a network to ranked items: beam search, exact scores, the ranks of held-out items."""
