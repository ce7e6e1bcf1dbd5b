"""CTranslate2's folders, such as faster-whisper's, written as the Hugging Face folders they were made from."""
