"""The fleet: what machines there are (`profile`), the clock that jumps (`clock`), machines, links."""
