"""What people read in a terminal: tables, stories and live views, made of the admin API's views. No I/O."""
