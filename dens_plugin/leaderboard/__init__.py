"""Files for the leaderboards of OC20 and OC22: made, read and verified."""
