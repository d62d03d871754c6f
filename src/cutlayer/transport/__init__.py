"""How messages travel: sessions, packets, carriers, certificates."""
