"""What happens to the gate when something around it breaks, and how soon the good are served again."""
