"""Pure: joins the three libraries. `plan(observed, desired, ledger, now)` is its heart."""
