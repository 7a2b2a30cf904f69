"""Rating of answers: judges (rule, openai), parsing of ratings, and scores from ratings. The steps exchange JSON lines."""
