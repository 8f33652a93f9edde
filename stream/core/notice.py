"""The notice that every program, file and page shows."""

NOTICE = "Research use only, not a medical device."
