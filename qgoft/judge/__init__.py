"""Rating answers: who rates (rule, openai), what a rating is, and what is made of ratings. Three files of JSON lines join the steps."""
