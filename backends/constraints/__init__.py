"""What an answer must be: grammars, masks over tokens, where reasoning ends."""
