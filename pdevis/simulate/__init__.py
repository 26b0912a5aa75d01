"""What drafting would cost on other devices and under other rules, worked out from the traces of real runs."""
