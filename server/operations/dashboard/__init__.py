"""The dashboard: pages about the runs of a store, for operators, in a browser. It shows, and changes nothing."""
