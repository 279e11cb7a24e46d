"""What the gateway costs beside the proxies it would be measured against: CPU, latency and memory, as ratios."""
