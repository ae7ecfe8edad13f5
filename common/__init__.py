"""The ground floor: one of each thing that all packages need. It imports none of them."""
