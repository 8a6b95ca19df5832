"""The views: of a manifest (`manifest_directory` lists them), and of a repository (`layout`)."""
