"""How the processes of a run are started, meet, watch each other and end."""
