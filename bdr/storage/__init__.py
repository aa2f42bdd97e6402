"""All OpenDAL; knows no SQL."""
