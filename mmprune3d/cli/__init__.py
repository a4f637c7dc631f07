"""The console command ``mmprune3d``: one file per subcommand."""
