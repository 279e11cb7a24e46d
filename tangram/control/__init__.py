"""The shell around the pure core: the loop, its store, the wire to the gateway, the REST API and the supervisor."""
