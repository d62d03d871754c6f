"""The transport of messages: sessions, packets, carriers, certificates."""
